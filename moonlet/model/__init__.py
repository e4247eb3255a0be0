"""The network, one idea a file.

Shape legend, used in every trailing comment: B batch, T time, D hidden size, H heads, K/V key/value head width,
R latent rank, P rope width, E experts, A active experts a token, I expert inner width, N tokens, S cached positions.
"""
