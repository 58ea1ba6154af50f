# shellcheck shell=bash
# shellcheck disable=SC2154,SC2164 # as in lib.sh
