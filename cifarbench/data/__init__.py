"""Datasets, splits, augmentation: everything between the files on disk and a batch on the device."""
