#!/bin/sh
# git runs this to ask for a password. The answer waits in a pipe that only this call of git has, and goes to no server
# but the one it was made for: git's question, which is $1, says who asks.
case "$1" in
    "Password for '$STAGE_RUNNER_ASKPASS_FOR'"*) exec cat "/dev/fd/$STAGE_RUNNER_ASKPASS_FD" ;;
esac
exit 1
