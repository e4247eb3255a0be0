"""For notebooks: a box to type a prompt in and watch the model go on with it.

moonlet.widgets.prompt_box(*moonlet.load("runs/quickstart"))
"""

from moonlet.widgets.prompt_box import PromptBox, prompt_box

__all__ = ["PromptBox", "prompt_box"]
