"""From a folder of images and masks to a dataset: layout, description, lists, annotations of other tools."""
