#!/bin/sh
# Runs test programs once for each list of features to go without, and adds up the results.
#
#   run.sh title tally-file runner without... -- program...
#
# A list "pidfd:test_process:test_liveness" is for these programs alone; no list at all is "".
# The last line is "N passed, N failed"; the same two numbers go to the tally file.
set -u
title=$1 tally=$2 runner=$3
shift 3
lists=
while [ "$1" != -- ]; do
    lists="$lists ${1:-nothing}"
    shift
done
shift

passed=0 failed=0
for list in $lists; do
    without=${list%%:*}
    [ "$without" = nothing ] && without=''
    for program; do
        case "$list:" in
        *:*:*) case "$list:" in *":${program##*/}:"*) ;; *) continue ;; esac ;;
        esac
        # shellcheck disable=SC2086  # the runner is a command line
        output=$(MPROC_EXT_WITHOUT=$without $runner "$program" 2>&1)
        status=$?
        last=$(printf '%s\n' "$output" | tail -n 1)
        ok=$(printf '%s\n' "$last" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1/p')
        bad=$(printf '%s\n' "$last" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\2/p')
        # A program that says nothing, or fails beyond its tests, is a failure of its own.
        if [ -z "$ok" ] || { [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; }; then
            ok=${ok:-0} bad=1
        fi
        if [ "$bad" -ne 0 ]; then
            printf '%s, without %s (status %d):\n%s\n' "$program" "${list%%:*}" "$status" "$output"
        fi
        passed=$((passed + ok)) failed=$((failed + bad))
    done
done
echo "$passed $failed" > "$tally"
echo "$title:"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
