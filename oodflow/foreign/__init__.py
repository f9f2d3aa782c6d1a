"""Other people's checkpoints, read without running anything of them.

``restricted`` unpickles to inert objects, ``pickles`` reads the files of ``torch.save`` with it,
``authors`` makes sense of the authors' pickled models, and ``formats`` turns all of that into
models of this package.
"""
