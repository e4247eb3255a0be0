"""A drawing of a network from its configuration alone, for the terminal and as an SVG for a slide."""

from moonlet.plot.network.svg import draw_network_svg as draw_network_svg
from moonlet.plot.network.terminal import draw_network_text as draw_network_text
