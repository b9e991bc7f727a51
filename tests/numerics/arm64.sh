#!/usr/bin/env bash
# Runs every_row.py on NumPy's aarch64 wheel under user-mode emulation, with each of OpenBLAS's kernels that
# the emulator can run. For Debian and Ubuntu, as root: takes qemu-user and an arm64 Python from their packages
# into a folder of its own, which is removed. Some 10 minutes a kernel.
#     bash tests/numerics/arm64.sh [KERNELS...]      # e.g. ARMV8 NEOVERSEN1
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get install -y -qq --no-install-recommends qemu-user >/dev/null
foreign="$(dpkg --print-foreign-architectures)"
case " $foreign " in *arm64*) ;; *) dpkg --add-architecture arm64 && apt-get update -qq ;; esac
version="$(apt-cache depends python3:arm64 | sed -n 's/.*Depends: \(python3\.[0-9]*\).*/\1/p' | head -1)"
packages=("$version-minimal" "lib$version-minimal" "lib$version-stdlib" libc6 libexpat1 zlib1g libssl3 libffi8
    libgcc-s1 libstdc++6 libbz2-1.0 liblzma5 libuuid1)
apt-get download -qq "${packages[@]/%/:arm64}"
mkdir root
for package in ./*.deb; do dpkg -x "$package" root; done
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "${version#python}" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    numpy threadpoolctl
mkdir site
for wheel in ./*.whl; do python3 -m zipfile -e "$wheel" site; done

export PYTHONPATH="$work/site" PYTHONDONTWRITEBYTECODE=1 QEMU_LD_PREFIX="$work/root"
for kernels in "${@:-ARMV8 CORTEXA57 NEOVERSEN1 THUNDERX2T99}"; do
    for name in $kernels; do
        for threads in 1 2; do
            printf '%s, %s BLAS threads: ' "$name" "$threads"
            OPENBLAS_CORETYPE="$name" OPENBLAS_NUM_THREADS="$threads" \
                nice qemu-aarch64 "root/usr/bin/$version" "$here/every_row.py" products || printf 'FAILED\n'
        done
    done
done
