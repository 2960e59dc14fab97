"""The judge for other people's trainers: as a reward model over HTTP (`server`), and as a function in TRL (`trl`)."""
