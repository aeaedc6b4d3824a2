#!/usr/bin/env bash
# benchmarks/paper/gpu.sh MINUTES OUT [NET [OPTION...]]: dense, ours and S alone of one net (vgg19 by default), side by
# side on one card, with as many epochs as end within the minutes; each result is in OUT as soon as it is there. The
# options are those of within.py, as in: --seeds 0 1 --kept 0.2978 0.15
#
# For a bare machine that has PyTorch and this repository, and no network. What it looks for, relative to the repository:
#   IMAGES  CIFAR-10 in folders, {train,test}/<class>/<image>, or in *.zip files of that layout (default data/cifar10)
#   WHEELS  wheels of what is not installed there (default wheels); see the end of this file
#   SCRATCH where images and wheels are unpacked, and runs have their folders (default /tmp/splore). What is there stays:
#           zip files may come in several goes, with MINUTES 0 to unpack them and no more, and runs that the minutes cut
#           short go on at the next call
set -euo pipefail
began=$(date +%s)
minutes=${1:?minutes} out=${2:?a folder for the results} net=${3:-vgg19} options=("${@:4}")
cd "$(dirname "$0")/../.."
images=${IMAGES:-data/cifar10} wheels=${WHEELS:-wheels} scratch=${SCRATCH:-/tmp/splore}
mkdir -p "$out" "$scratch"
if compgen -G "$wheels/*.whl" > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$scratch/site" "$wheels"/*.whl
fi
if compgen -G "$images/*.zip" > /dev/null; then
  for each in "$images"/*.zip; do python3 -m zipfile -e "$each" "$scratch"; done
  images=$scratch/cifar10
fi
[ "$minutes" = 0 ] && exit
export PYTHONPATH=$PWD/src:$scratch/site PYTHONUNBUFFERED=1
exec python3 benchmarks/paper/within.py --net "$net" --root "$images" --minutes "$minutes" --began "$began" --out "$out" \
  --runs "$scratch/runs-$net" "${options[@]}"

# To fill the folder of wheels where there is a network, for Python 3.12:
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels jsonargparse docstring-parser \
#     ruamel.yaml typeshed-client importlib-resources
