"""`config.data`: how examples are made. Read by `input_pipeline.loader` and `input_pipeline.augment`."""

from __future__ import annotations

from siglip_jax.training.config_fields.field import Field, FieldTable, Values, at_least, between, one_of

_SHARE = Values("0 to 1")  # checked by `input_pipeline.augment.Augmentation`, as everything random below

DATA = FieldTable(
    "Data",
    "data",
    "How examples are read and changed; docs/guide/input.md has the order of the changes and their costs.",
    {
        "train_split": Field("train", "Split of the dataset to train on.", Values("a split of the dataset")),
        "most": Field(
            0,
            "Train on so many of its rows alone, for learning curves. `seed` draws them; those of a smaller number are "
            "among those of a larger one. The tokenizer, an adapter's statistics and a teacher's reduction are theirs.",
            at_least(0, "0 for all, or no more than there are"),
        ),
        "flip": Field(True, "Mirror half of the images."),
        "shift": Field(0, "Move each image by up to this many pixels along each side.", Values("0 or more")),
        "zoom": Field(0.0, "Enlarge or shrink each image by up to this share.", Values("0 to less than 1")),
        "crop_area": Field(
            (1.0, 1.0),
            "Keep a window of each original image: its share of the area, (low, high). (0.7, 1.0) is mild.",
            Values("(low, high), more than 0 and up to 1"),
        ),
        "crop_aspect": Field(
            (1.0, 1.0),
            "Width to height of that window, relative to the image's own. (0.9, 1.1) is mild.",
            Values("(low, high), more than 0"),
        ),
        "brightness": Field(0.0, "Change the brightness by up to this share.", _SHARE),
        "contrast": Field(0.0, "Change the contrast by up to this share.", _SHARE),
        "saturation": Field(0.0, "Change the saturation by up to this share.", _SHARE),
        "hue": Field(
            0.0,
            "Turn the hue by up to this part of the colour circle. Colours are attributes of products, so leave all "
            "four at 0 where they are.",
            Values("0 to 0.5"),
        ),
        "choose_image": Field(False, "Draw one of an item's images in each epoch, instead of the first."),
        "choose_title": Field(False, "Draw one of an item's titles in each epoch, instead of the first."),
        "title_attributes": Field(
            (),
            "Attributes whose values are one part of the title each, added to a title that does not have them.",
            Values("names of attributes"),
        ),
        "title_dropout": Field(
            0.0, "Probability that a part of the title (a word or a value) is left out.", Values("0 to less than 1")
        ),
        "title_shuffle": Field(0.0, "Share of the titles whose parts are shuffled.", _SHARE),
        "cache": Field(
            False,
            "Keep decoded, resized images and token ids in memory. Right for small images, not for millions of them.",
            free=True,
        ),
        "cache_frozen": Field(
            "auto",
            "Run a tower that is frozen, wholly or up to its head, once over the training split and train from its "
            "stored output, with the same numbers (docs/guide/finetuning.md). With auto, where that saves work; with "
            "on, it is an error where it cannot be.",
            one_of("auto", "on", "off"),
            free=True,
        ),
        "num_threads": Field(0, "Threads that decode.", at_least(0, "0 for as many as cores, or more"), free=True),
        "num_workers": Field(
            0,
            "Processes that prepare batches. Without them the threads do it.",
            at_least(0, "0 for none, or more"),
            free=True,
        ),
        "max_bad_fraction": Field(
            0.01,
            "Share of the rows that may be unreadable: they are replaced by others and counted. More stop the run.",
            between(0, 1),
            free=True,
        ),
    },
)
