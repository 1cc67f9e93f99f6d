#!/bin/sh
# Prints the DALI wheel that fits this machine: the newest CUDA major version the driver supports; cuda110 without a driver.
version=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\).*/\1/p' | head -n 1)
case "$version" in
    "" | *[!0-9]*) echo cuda110 ;;
    *) if [ "$version" -ge 13 ]; then echo cuda130; elif [ "$version" -ge 12 ]; then echo cuda120; else echo cuda110; fi ;;
esac
