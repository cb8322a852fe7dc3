#!/usr/bin/env bash
# Everything that is measured on a GPU, on a machine that need not have a network; each command there takes under ten minutes.
#
#   benchmarks/gpu.sh wheels PYTHON    with a network: all that an environment of Python 3.12 has beside PyTorch, as wheels in folders
#                                      of at most 60 MB below wheels/
#   benchmarks/gpu.sh install          there: an environment of those wheels beside the machine's own PyTorch
#   benchmarks/gpu.sh tables           there: tests/test_cuda.py, the table of costs, CUDA graphs
#   benchmarks/gpu.sh train ASSETS     there: Isaac-Ant and Isaac-Humanoid, 4096 environments, as far as four minutes each go,
#                                      with the robots in the folder ASSETS (examples/isaaclab_standins makes some)
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-outputs/gpu}

wheels() {
    rm -rf wheels && mkdir -p wheels/all
    local elsewhere='torch|triton|nvidia.*|cuda.*|torchrl[_-]genpo' # the machine has its own, or the tree is there
    local unused='imageio.*|playwright|onnx.*|wandb|pandas|statsmodels|rliable|arch|tensorboard.*|grpcio'
    "$1" -m pip freeze --exclude-editable | grep -Evi "^($elsewhere|$unused)[=@ ]" >wheels/names.txt
    "$1" -m pip wheel --quiet --no-deps --wheel-dir wheels/all -r wheels/names.txt
    "$1" - <<'PYTHON'
from pathlib import Path
part, size = 1, 0
for wheel in sorted(Path("wheels/all").iterdir(), key=lambda path: -path.stat().st_size):
    size += wheel.stat().st_size
    if size > 60e6 and size > wheel.stat().st_size:
        part, size = part + 1, wheel.stat().st_size
    folder = Path(f"wheels/{part}")
    folder.mkdir(exist_ok=True)
    wheel.rename(folder / wheel.name)
PYTHON
    du -sh wheels/[0-9]*
}

case "${1:-}" in
wheels) wheels "$2" ;;
install)
    python3 -m venv --system-site-packages .gpu
    .gpu/bin/pip install --quiet --no-index --no-deps wheels/[0-9]*/*.whl
    ;;
tables)
    mkdir -p "$OUT"
    export PYTHONPATH=$PWD MUJOCO_GL=egl
    .gpu/bin/python -m pytest -o addopts=--import-mode=importlib -q tests/test_cuda.py | tee "$OUT/tests.txt"
    .gpu/bin/python -m benchmarks.cost.table1 --device cuda --parts sizes
    .gpu/bin/python -m benchmarks.cost.cuda_graphs
    cp benchmarks/results/table1_cuda.* benchmarks/results/cuda_graphs.md "$OUT"
    ;;
train)
    mkdir -p "$OUT"
    export PYTHONPATH=$PWD WARP_CACHE_PATH=$PWD/.gpu/kernels
    for task in ant humanoid; do
        timeout --signal=TERM 240 .gpu/bin/python sota-implementations/genpo.py "env=isaaclab/$task" device=cuda \
            "env.options.asset_root=$2" "hydra.run.dir=$PWD/.gpu/$task" || true # a run that is stopped saves itself
        cp ".gpu/$task/metrics.csv" "$OUT/$task.csv"
    done
    ;;
*) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
