"""Templates of the user's own: a YAML file that lists, by role, shipped templates by name and new ones.

pointwise:
  - pointwise-1
  - name: urteil
    verdicts: [Ja, Nein]
    text: |
      Frage: ...
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spark_rl.config import read_mapping
from spark_rl.prompts.prompts import Prompts
from spark_rl.prompts.templates import Template
from spark_rl.types import Role

_ROLES = [role.value for role in Role]
_KEYS = ("name", "text", "verdicts")


def read_templates(path: Path, known: Prompts) -> tuple[Template, ...]:
    """The templates of a file, and of the roles that it does not name those that are known.

    Raises:
        ValueError: it cannot be read, or is not of this form; one sentence.
    """
    listed = read_mapping(path, "roles such as 'answer:' and 'pointwise:'", texts=True)
    if unknown := [name for name in listed if name not in _ROLES]:
        raise ValueError(f"{path}: {_unknown(unknown[0], _ROLES)}; a key is a role, and its value lists templates")
    templates: list[Template] = []
    for role in Role:
        entries = listed.get(role, [template.name for template in known.templates_for(role)])
        entries = entries if isinstance(entries, list) else [entries]
        of_role = [_template(entry, role, known, f"{path}: {role}, entry {i + 1}") for i, entry in enumerate(entries)]
        if not of_role or (role is Role.ANSWER and len(of_role) > 1):
            wanted = "just one template" if role is Role.ANSWER else "at least one template"
            raise ValueError(f"{path}: {role} must have {wanted}, not {len(of_role)}; or leave the role out")
        templates += of_role
    names = [template.name for template in templates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: two templates have the name {twice[0]!r}; give each its own")
    return tuple(templates)


def _template(entry: Any, role: Role, known: Prompts, where: str) -> Template:
    if isinstance(entry, str):
        try:
            return known.template(entry, role)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; a new one has a name and a text") from None
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: must be the name of a template, or have a name and a text")
    if unknown := [key for key in entry if key not in _KEYS]:
        raise ValueError(f"{where}: {_unknown(unknown[0], _KEYS)}")
    for key in ("name", "text"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ValueError(f"{where}: {key!r} must be text; give it")
    return Template(entry["name"], role, entry["text"].strip(), _verdicts(entry.get("verdicts"), role, where))


def _verdicts(words: Any, role: Role, where: str) -> tuple[str, str]:
    if words is None:
        return "", ""
    if not role.is_judge:
        raise ValueError(f"{where}: a template of the role {role} has no verdicts; remove them")
    if not isinstance(words, list) or len(words) != 2 or not all(isinstance(w, str) and w.strip() for w in words):
        raise ValueError(
            f"{where}: 'verdicts' must be two words, as in [Ja, Nein]: that of a right response comes first"
        )
    first, second = (word.strip() for word in words)
    return first, second


def _unknown(name: str, known: Any) -> str:
    near = get_close_matches(name, known, n=1)
    return f"there is no {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}")
