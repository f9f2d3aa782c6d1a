"""Checkpoints of other implementations, read without running any of their code.

``restricted`` unpickles to inert objects, ``pickles`` reads the files of ``torch.save`` with it,
``authors`` makes sense of the authors' pickled models, and ``formats`` turns all of that into
models of this package.
"""
