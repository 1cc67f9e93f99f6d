#!/bin/sh
# Prints the DALI wheel that fits this machine: that of the newest CUDA version the driver supports. Without a driver, the
# oldest, which Python 3.13 and later do not have; then the newest.
version=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\).*/\1/p' | head -n 1)
case "$version" in
    "" | *[!0-9]*)
        if "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 13))' 2>/dev/null; then
            echo cuda130
        else
            echo cuda110
        fi
        ;;
    *) if [ "$version" -ge 13 ]; then echo cuda130; elif [ "$version" -ge 12 ]; then echo cuda120; else echo cuda110; fi ;;
esac
