"""The only executables: parse arguments, call a package, print."""
