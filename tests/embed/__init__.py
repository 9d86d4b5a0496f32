"""Tests of embed/, the C and C++ library; see native.py for how it is called from here."""
