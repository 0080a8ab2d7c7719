#!/usr/bin/env bash
# Plays Google for the launcher. $FAKE/world has one line a look at the slice: its state and what its VMs say, as in
#   NOT_FOUND | OFFLINE | SUSPENDED | ACTIVE idle,exited-1 | ACTIVE running,other | ACTIVE unreachable | ACTIVE broken |
#   ACTIVE finishing
# The last line stays. Each call is kept in $FAKE/calls, quoted for a shell. With $FAKE/vm the VM is that folder: what is
# sent to it is copied there, and what it is to run is run.
printf '%q ' "$@" >>"$FAKE/calls"
echo >>"$FAKE/calls"
now() { cat "$FAKE/now" 2>/dev/null || echo NOT_FOUND; }
case " $* " in
*" describe "*)
    head -n 1 "$FAKE/world" >"$FAKE/now"
    [[ $(wc -l <"$FAKE/world") -le 1 ]] || sed -i 1d "$FAKE/world"
    read -r state _ < <(now)
    case $state in
    NOT_FOUND) echo "ERROR: (gcloud.x) NOT_FOUND: Resource 'x' was not found" >&2 && exit 1 ;;
    OFFLINE) echo "ERROR: there was a problem with the network" >&2 && exit 1 ;;
    esac
    printf '%s\t%s\n' "$state" "$([[ $state == FAILED ]] && echo "no quota")"
    ;;
*" create "*) exit "$(cat "$FAKE/create" 2>/dev/null || echo 0)" ;;
*" storage cat "*) cat "$FAKE/$(basename "$3")" 2>/dev/null ;;
*" secrets versions access "*) echo "from-secret-manager" ;;
*" scp "*)
    [[ ! -e $FAKE/vm ]] || cp -p "$5" "$FAKE/vm/${6#*:}"
    exit "$(cat "$FAKE/scp" 2>/dev/null || echo 0)"
    ;;
*" ssh "*)
    for word in "$@"; do [[ $word != --command=* ]] || remote=${word#--command=}; done
    if [[ -e $FAKE/vm ]]; then
        cd "$FAKE/vm" && HOME=$PWD bash -c "$remote"
        exit
    fi
    read -r _ words < <(now)
    [[ $words != unreachable ]] || exit 255
    [[ $words != broken || $remote != *" setup "* ]] || exit 70
    for step in setup check start; do # fails as often as its file has letters
        if [[ $remote == *" $step "* && -s $FAKE/fails_$step ]]; then
            sed -i 's/.//' "$FAKE/fails_$step"
            exit 70
        fi
    done
    if [[ $remote == *" status"* ]]; then
        echo "SSH: Attempting to connect to worker 0..."
        if [[ $words == finishing ]]; then
            # At the first look it is about to end, at the next it has.
            words=running
            [[ ! -e $FAKE/done.json ]] || words=exited-0
            echo '{"steps": 6}' >"$FAKE/done.json"
        fi
        tr ',' '\n' <<<"${words/broken/idle}" | sed "s/exited-/exited /; s/^other$/command $(printf '0%.0s' {1..64})/"
    fi
    ;;
esac
