//! Shared by the developer commands and the whole-machine tests.
