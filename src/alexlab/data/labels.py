"""Labels below 0, which no metric counts."""

PADDING = -1  # index and label of an item that pads a rank's batches
UNREADABLE = -2  # label of an image that cannot be read, if that is not an error
