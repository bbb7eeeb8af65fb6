"""Embeds pictures beside text in one vector space: the EVA02-CLIP tower, picture decoding, and Visualized-BGE."""
