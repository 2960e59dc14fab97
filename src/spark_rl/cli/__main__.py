"""`python -m spark_rl.cli`."""

from spark_rl.cli import main

main()
