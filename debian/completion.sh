#!/bin/sh
# completion.sh PYTHON DIRECTORY: writes the completion of the command for each shell, as click makes it.
set -eu
mkdir -p "$2"
complete() { _SWAPTIDE_COMPLETE="$1_source" "$python" -IB -m swaptide.host.cli; }
python="$1"
complete bash >"$2/swaptide"
complete zsh >"$2/_swaptide"
complete fish >"$2/swaptide.fish"
# A script that is empty means that click has not been asked.
for file in swaptide _swaptide swaptide.fish; do grep -q _SWAPTIDE_COMPLETE "$2/$file"; done
