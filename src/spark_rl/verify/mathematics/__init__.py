r"""What an answer in mathematics says, and whether two say the same.

`notation.py` makes tokens of any notation (LaTeX, Unicode, plain text), `grammar.py` a SymPy expression of tokens,
`reading.py` one of the kinds of `answers.py` of what is around expressions, and `equal.py` compares. SymPy is the
algebra, pint the units; what the grammar does not know (sums, integrals, limits) math-verify's parser reads.

Why a grammar of our own: math-verify 0.9 reads `2(3)` as 5, `f'(x)` as f times x, `\log 8 / \log 2` as log(8/log 2) and
`X` as `x`, and no rewriting of its input mends that. Ours refuses what it does not know, and takes a tenth of the time.
"""

from spark_rl.verify.mathematics.answers import Answer
from spark_rl.verify.mathematics.equal import Rules, equal
from spark_rl.verify.mathematics.reading import read

__all__ = ["Answer", "Rules", "equal", "read"]
