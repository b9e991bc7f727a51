# Sourced by the scripts here and by .ci/run: `prepare_environment EXTRA...` makes, or re-uses, .venv in the
# checkout with rayemu installed in place, its core dependencies and the extras, at the pinned versions.
# PYTHON chooses the interpreter; without it the first of python3, python3.13 ... that is 3.10 to 3.14.

rayemu_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
rayemu_venv="$rayemu_root/.venv"

say() { printf 'rayemu: %s\n' "$*" >&2; }

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1 </dev/null
}

# Prints the interpreter to build .venv with.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" && { printf '%s\n' "$PYTHON"; return; }
        say "PYTHON=$PYTHON does not run, or is not Python 3.10 to 3.14"
        return 1
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python3.10 python; do
        supported "$candidate" && { printf '%s\n' "$candidate"; return; }
    done
    say "no Python 3.10 to 3.14 found; install one, or set PYTHON to its path"
    return 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null; }

# What the environment is built from; when it changes, rayemu is installed again.
fingerprint() {
    printf '%s %s\n' "$1" "$(cat "$rayemu_root/pyproject.toml" "$rayemu_root/constraints.txt" | cksum)"
}

# What .venv holds: fingerprint ("unfinished" while installing), extras, and the checkout that it belongs to.
write_stamp() { printf '%s\n%s\n%s\n' "$1" "$2" "$rayemu_root" >"$rayemu_venv/.rayemu-installed"; }

install() {
    # setuptools warns of every editable install; nobody here can act on it.
    PYTHONWARNINGS=ignore "$rayemu_venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -c "$rayemu_root/constraints.txt" "$@" </dev/null
}

make_venv() {
    local python="$1"
    if "$python" -c 'import ensurepip' >/dev/null 2>&1; then
        "$python" -m venv --clear "$rayemu_venv" || return 1
    else
        # An interpreter without ensurepip (Debian's, by default) may have a pip that can reach into .venv.
        "$python" -m venv --clear --without-pip "$rayemu_venv" || return 1
        if ! "$python" -m pip --python "$rayemu_venv/bin/python" install --quiet pip </dev/null; then
            say "$python has neither ensurepip nor pip (on Debian or Ubuntu: apt install python3-venv)"
            return 1
        fi
    fi
}

prepare_environment() {
    local python version present built="" extras="" home="" extra wanted missing=""
    if [ -f "$rayemu_venv/.rayemu-installed" ]; then
        { read -r built && read -r extras && read -r home; } <"$rayemu_venv/.rayemu-installed" || true
    fi
    if [ -n "$home" ] && [ "$home" != "$rayemu_root" ]; then
        say "the checkout has moved from $home"
        rm -rf "$rayemu_venv"
        built="" extras="" home=""
    fi
    if [ -z "${PYTHON:-}" ] && supported "$rayemu_venv/bin/python"; then
        python="$rayemu_venv/bin/python"
    else
        python="$(find_python)" || return 1
    fi
    version="$(version_of "$python")"
    wanted="$extras"
    for extra in "$@"; do
        case " $wanted " in *" $extra "*) ;; *) wanted="${wanted:+$wanted }$extra" missing=yes ;; esac
    done
    if [ "$built" = "$(fingerprint "$version")" ] && [ -z "$missing" ]; then
        return 0
    fi

    present="$(version_of "$rayemu_venv/bin/python" || true)"
    if [ "$present" != "$version" ]; then
        if [ -n "$present" ] && [ -z "$home" ]; then
            say "$rayemu_venv is not ours and has Python $present, not $version; move it away, or set PYTHON"
            return 1
        fi
        say "making .venv with Python $version"
        make_venv "$python" || return 1
        wanted="$*"
    fi
    write_stamp unfinished "$extras"
    say "installing into .venv${wanted:+ with extras: $wanted} (a few minutes the first time, then re-used)"
    # torch by itself first, so that a wheel that pip already knows of is taken before anything else is resolved.
    case " $wanted " in *" parity "*) install "torch==2.13.0" || return 1 ;; esac
    install -e "$rayemu_root${wanted:+[${wanted// /,}]}" || return 1
    write_stamp "$(fingerprint "$version")" "$wanted"
}
