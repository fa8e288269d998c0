//! The transport core against drivers that break its rules.
