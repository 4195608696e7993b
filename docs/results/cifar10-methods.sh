#!/usr/bin/env bash
# Train and evaluate every method alike: cifar10-methods.sh CONFIG RUNS [NAME …]
# CONFIG is all but the method (cifar10-w8.yaml, cifar10-w16.yaml); RUNS the folder to write to; NAMEs the rows, all
# of them by default. JOBS=2 trains two at once. Stop it whenever you like: the same command goes on.
set -euo pipefail
config=$1 runs=$2; shift 2
declare -A rows=(
    [sat]="--method sat"
    [trades]="--method trades"
    [avm]="--method avm"
    [adt]="--method adt"
    [rat]="--method rat"
    [gairat]="--method gairat"
    [lrat]="--method lrat"
    [sat-awp]="--method sat --move awp"
    [sat-rwp]="--method sat --move rwp"
    [trades-rwp]="--method trades --move rwp --move.gamma 0.005"
    [taylor]="--method taylor_code --method.second 0.2"
    [rat-rwp]="--method rat --move rwp"
)
order=(rat-rwp trades-rwp adt sat-rwp sat trades avm rat gairat sat-awp lrat taylor)
[ $# -gt 0 ] && order=("$@")
for name in "${order[@]}"; do
    echo "--config $config ${rows[$name]} --name $name --out $runs/$name"
done | xargs -P "${JOBS:-1}" -L 1 bash -c '
    folder=${@: -1}
    demilune train --resume "$@" >>"$folder.log" 2>&1 &&
    demilune evaluate "$folder" --attacks pgd10,cw10,multi9x30 --limit "${LIMIT:-1000}" --batch 500 >>"$folder.log" 2>&1 &&
    echo "done: $folder"' train
