#!/usr/bin/env bash
# Builds the folder that a machine with torch and a GPU but no network needs, and prints its size:
#
#     benchmarks/carry.sh FOLDER CHAT_FOLDER TOKENIZER_FOLDER
#
# There, with the repository beside it:
#
#     pip install --no-index --no-deps FOLDER/wheels/*.whl
#     python benchmarks/on_gpu.py --rows FOLDER/rows.npz --out OUT
#
# PYTHON names the interpreter, of the version of that machine.
set -euo pipefail
if [ $# -ne 3 ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0"
    exit 2
fi
python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/wheels"
folder=$(cd "$1" && pwd)
packages=(
    'hydra-core>=1.3.2,<1.4' 'omegaconf>=2.3,<2.4' 'antlr4-python3-runtime==4.9.*' # a source distribution: its wheel is built
    'fastokens>=0.3.5' 'orjson>=3.10' 'jsonschema>=4.21' jsonschema-specifications referencing rpds-py
    'submitit>=1.5.2' cloudpickle 'datasets>=3.2' dill multiprocess
    trl liger-kernel 'torchao>=0.18' 'peft>=0.18'
    pytest pytest-timeout pytest-xdist execnet iniconfig pluggy
)
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheels" "${packages[@]}"
PYTHONPATH="$here/..:${PYTHONPATH:-}" "$python" "$here/rows_file.py" "$2" "$3" "$folder/rows.npz"
du -sh "$folder/wheels" "$folder/rows.npz"
du -sh "$folder"
