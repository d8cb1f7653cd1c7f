"""How the page's kernel learns where it works and what it shows: the names of environment variables."""

WORKING_FOLDER, RECIPE, LANGUAGE = "FTLAB_BOARD_FOLDER", "FTLAB_BOARD_RECIPE", "FTLAB_LANG"
