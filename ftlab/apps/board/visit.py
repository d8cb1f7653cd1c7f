"""The environment variables that tell the page's kernel its working folder, language and recipe."""

WORKING_FOLDER, RECIPE, LANGUAGE = "FTLAB_BOARD_FOLDER", "FTLAB_BOARD_RECIPE", "FTLAB_LANG"
