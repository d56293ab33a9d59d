"""The reader of HDF5 files, by the name that scripts know it by."""

from .formats.hdf5 import Hdf5Reader as Hdf5Reader
