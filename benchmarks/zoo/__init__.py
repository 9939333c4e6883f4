"""Steps of other people's models, from packages on PyPI (`requirements.txt` beside this file)."""
