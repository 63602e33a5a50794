"""Molmo (arXiv 2409.17146): a decoder that also sees pictures.

| file | contents |
|---|---|
| `decode.py` | picture files to arrays: colour modes, orientation, damaged and oversized files |
| `image.py` | an array to crops, tokens, pooling indices and padding classes |
| `tower.py`, `connector.py` | the vision transformer, and what turns its features into embeddings of tokens |
| `model.py` | the decoder with both, behind `models.model.Model` |
"""
