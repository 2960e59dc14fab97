"""`spark-rl serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from spark_rl.cli.model import open_model, settings_for
from spark_rl.cli.rows import say
from spark_rl.progress import Shown


def serve(
    model: Annotated[str, typer.Argument(help="Folder of a model, Hub id, `embedded`, or address of a server.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="serve.key=value, judge.key=value, ...")] = None,
    host: Annotated[str, typer.Option(help="Address to serve at; one that others can reach needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8100,
    token_env: Annotated[str | None, typer.Option(help="Environment variable that holds the clients' token.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length limit of a judgement.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampled judgements.")] = 0,
) -> None:
    """Serve a judge as a reward model over HTTP.

    POST /score judges {"question", "response"}, or several as {"items": [...]},
    and answers as `spark-rl judge` does; POST /compare judges {"question", "a",
    "b"}; POST /get_reward is what OpenRLHF asks a remote reward model. GET /health
    and GET /metrics tell how it goes. What waits together is judged together.
    A vision-language model takes images as data URLs: in "images" beside the
    question, or in its content parts, as OpenAI's protocol has them.

    Examples:

        spark-rl serve runs/quickstart/final

        spark-rl serve runs/quickstart/final --host 0.0.0.0 --token-env JUDGE_TOKEN serve.max_batch=128

        curl 127.0.0.1:8100/score --json '{"question": "What is 3+4+2?", "response": "\\\\boxed{8}"}'
    """
    config = settings_for(model, overrides or [], seed, max_new_tokens)
    token = None if token_env is None else os.environ.get(token_env)
    if token_env and not token:
        raise ValueError(f"--token-env: {token_env} is not set; export it with the token, or name another variable")
    try:
        from spark_rl.integrations.server import bind, create_app
        from spark_rl.integrations.server import serve as serve_app
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise ValueError("serving needs FastAPI and uvicorn; pip install 'spark-rl[serve]'") from None
    listener = bind(host, port, public=token is not None)
    from spark_rl.infer import Judge

    with Shown() as shown:
        shown.stage(f"loading {model}")
        judge = Judge(open_model(config), config.judge, seed=config.seed)
    listener.listen(2048)  # who connects from now on waits for the app instead of being refused
    say(f"serving {model} at http://{host}:{listener.getsockname()[1]}; Ctrl-C stops")
    serve_app(create_app(judge, config.serve, token=token), listener, config.serve.stop_seconds)
