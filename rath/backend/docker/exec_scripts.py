"""The shell scripts of exec mode: what an image without Python still can do, given ``sh`` and a few small tools.

Each script gets ``NONCE``, then its own arguments, in which every byte that is not plain is written ``\\0ooo``: the engine's
API takes text only. It ends by writing a mark to both streams, the one on stderr with its verdict: the engine ends
the streams only when the last background process has closed them, and says the exit code only after another request. Input
comes with its size: not every carrier (TLS) can say that one direction has ended.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

__all__ = ["EXISTS", "GO", "KILL", "LIST", "MAIN", "READ", "RUN", "WRITE", "mark", "path_below", "script"]

# The main process. Its shell stays, to reap what is orphaned.
MAIN = 'chmod 1777 /tmp && { [ -z "$1" ] || chown -R "$1" /workspace; } && echo ready && cat >/dev/null; exit'

GO = b"\n"
"""What every script but MAIN waits for: docker-py may swallow output that comes together with the engine's answer."""

_COMMON = r"""
read -r _
nonce=$1; shift
left=$#
while [ $left -gt 0 ]; do
    one=$(printf '%b.' "$1"); shift
    set -- "$@" "${one%.}"
    left=$((left - 1))
done
finish() { printf '\036%s\036' "$nonce"; printf '\036%s %s\036' "$nonce" "$1" >&2; exit 0; }
# Where a path leads: the longest part that is there with its links followed, as `real`, and the rest of it.
resolve() {
    base=$1 rest='' links=0
    while :; do
        while [ ! -e "$base" ] && [ ! -L "$base" ]; do
            rest=/${base##*/}$rest base=${base%/*}
            [ -n "$base" ] || base=/
        done
        [ ! -e "$base" ] || break
        # A link to what is not there, which not every readlink follows.
        links=$((links + 1))
        [ $links -le 40 ] || finish circle
        text=$(readlink "$base" && printf x) || finish missing
        case "$text" in
        /*) base=${text%?x}$rest rest='' ;;
        *) base=${base%/*}/${text%?x}$rest rest='' ;;
        esac
    done
    case "$rest/" in */../*) finish missing ;; esac
    real=$(readlink -f "$base" && printf x) || finish missing
    real=${real%?x}
    case "$real" in /workspace | /workspace/*) ;; *) finish outside ;; esac
    [ -z "$rest" ] || [ ! -e "$real" ] || [ -d "$real" ] || finish not_directory
}
# Go to a directory, and see that it is the one that was meant: a link may have taken its place.
go() {
    cd -P "$1" 2>/dev/null || finish missing
    here=$(pwd -P && printf x)
    [ "${here%?x}" = "$2" ] || finish missing
}
# Go where the resolved path's last part is, `name`; make what is missing on the way if $1 says so.
enter() {
    folder=$real name=.
    if [ -z "$rest" ] && [ "$real" != /workspace ]; then folder=${real%/*} name=${real##*/}; fi
    go "$folder" "$folder"
    while [ -n "$rest" ]; do
        name=${rest#/}; name=${name%%/*}; rest=${rest#/"$name"}
        [ -n "$rest" ] || break
        [ -n "$1" ] || finish missing
        [ -d "./$name" ] || mkdir "./$name" || finish failed
        folder=$folder/$name
        go "./$name" "$folder"
    done
}
"""

# DIRECTORY, SIZE of the input or nothing, ARGUMENTS...
RUN = (
    _COMMON
    + r"""
resolve "$1"; input=$2; shift 2
[ -z "$rest" ] && [ -e "$real" ] || finish missing
[ -d "$real" ] || finish not_directory
go "$real" "$real"
command -v "$1" >/dev/null 2>&1 || finish no_program
if [ -n "$input" ]; then head -c "$input" | (exec "$@"); else (exec "$@") </dev/null; fi
finish $?
"""
)

# PATH, LIMIT
READ = (
    _COMMON
    + r"""
resolve "$1"; enter ""; file=./$name
[ -e "$file" ] || finish missing
[ ! -d "$file" ] || finish directory
[ -f "$file" ] || finish special
[ "$(wc -c <"$file")" -le "$2" ] || finish large
cat "$file" || finish failed
finish 0
"""
)

# PATH, MODE or nothing, SIZE
WRITE = (
    _COMMON
    + r"""
resolve "$1"; mode=$2; enter make; file=./$name temporary=./.rath-$nonce.tmp
[ ! -d "$file" ] || finish directory
[ ! -e "$file" ] || [ -f "$file" ] || finish special
if [ -z "$mode" ] && [ -e "$file" ]; then mode=$(stat -c %a "$file" 2>/dev/null); fi
# A stream that was cut off must not become the file.
if head -c "$3" >"$temporary" && [ "$(wc -c <"$temporary")" -eq "$3" ] && chmod "${mode:-644}" "$temporary" &&
    mv -f "$temporary" "$file"
then finish 0; fi
rm -f "$temporary"
finish failed
"""
)

# PATH. Answers with a letter and a name each, ended by a NUL.
LIST = (
    _COMMON
    + r"""
resolve "$1"
[ -z "$rest" ] && [ -e "$real" ] || finish missing
[ -d "$real" ] || finish not_directory
go "$real" "$real"
for one in ./* ./.[!.]* ./..?*; do
    if [ -d "$one" ]; then printf 'd%s\000' "${one##*/}"
    elif [ -e "$one" ] || [ -L "$one" ]; then printf 'f%s\000' "${one##*/}"
    fi
done
finish 0
"""
)

EXISTS = _COMMON + 'resolve "$1"; if [ -z "$rest" ] && [ -e "$real" ]; then finish 0; else finish 1; fi\n'

# Ends everything that has $1 in its environment: stopped first, so that nothing is born while it looks.
KILL = r"""
read -r _
pass=0 last=
while [ $pass -lt 20 ]; do
    found=
    for place in /proc/[0-9]*; do
        case "$(cat "$place/environ" 2>/dev/null | tr '\000' '\n')" in
        *"RATH_CALL=$1"*) found="$found ${place#/proc/}" ;;
        esac
    done
    [ -n "$found" ] || exit 0
    [ "$found" = "$last" ] && kill -KILL $found 2>/dev/null || kill -STOP $found 2>/dev/null
    last=$found pass=$((pass + 1))
done
kill -KILL $found 2>/dev/null
"""


def mark(nonce: str) -> bytes:
    """What ends the streams of a script with this nonce; on stderr a verdict and another 0x1e follow instead."""
    return f"\036{nonce}".encode()


def script(text: str, nonce: str, arguments: Sequence[bytes]) -> list[str]:
    """The command that runs a script."""
    return ["/bin/sh", "-c", text, "sh", nonce, *(_plain(one) for one in arguments)]


def _plain(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\0{byte:03o}" for byte in data)


def path_below(path: str) -> bytes:
    """A path as the scripts take it: absolute, from the workspace if it is relative, without empty parts."""
    parts = os.path.join("/workspace", path).split("/")
    return os.fsencode("/" + "/".join(part for part in parts if part not in ("", ".")))
