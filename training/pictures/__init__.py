"""Pictures of what makes a sound, to train models that are asked with a picture (docs/id_uss.md).

``catalogue.csv`` says in which packages of Debian and npm the pictures lie and what each one shows
(a concept); ``concepts.csv`` which kinds of recordings a concept goes with, so that any recording
of a dog goes with any picture of a dog. Pictures of one concept are split like the recordings:
those of the test split are never trained on.

    python -m training.pictures build           # fetch, unpack, pack to data/pictures
    python -m training.pictures embed           # embeddings of augmented versions
    python -m training.pictures coco-fsd50k …   # the paper's own data, for those who have it
"""
