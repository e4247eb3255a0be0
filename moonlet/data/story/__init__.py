"""moonlet's built-in corpus: synthetic stories from a small world, with their exact information content.

`notation` reads how stories are written, `grammar` tells and reads back by choices, `people`, `things`, `places`,
`feelings` and `plots` are what there is to tell, `questions` asks, and `world` puts it together.
"""

from moonlet.data.story.questions import Question
from moonlet.data.story.world import SPLITS, Derivation, Story, StoryWorld

__all__ = ["SPLITS", "Derivation", "Question", "Story", "StoryWorld"]
