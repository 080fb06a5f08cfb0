#!/usr/bin/env bash
# A week of a click log, from CSV files to tomorrow's model. Stopped anywhere, it goes on when it is started again.
#
#     bash seven_days.sh [options of `dqrm-cpu train`]       in an empty folder
set -euo pipefail
days=${DAYS:-7} rows=${ROWS:-20000}

# Your own log would lie there already. A day has times, tags, negative numbers, bad rows, and users nobody knew before.
dqrm-cpu data generate days --format log --days "$days" --rows "$rows"

# What are the columns? Look it over; how to take a balance below zero is for you to say.
dqrm-cpu prepare days/day-1.csv --suggest suggested.toml
{ cat suggested.toml; printf '\n[transforms]\nbalance = "standard"\nage = "standard"\n'; } > clicks.toml

# The first day: the vocabulary, settings that suit this log, and one pass in which the learning rate falls to zero.
dqrm-cpu prepare days/day-1.csv --schema clicks.toml --min-count 3 --bad-rows quarantine --out data/day-1
dqrm-cpu train --data data/day-1 --run-dir runs/day-1 --resume auto --tune \
    --train.epochs 1 --train.decay-steps $((rows / 150)) "$@"

for ((today = 2; today <= days; today++)); do
    yesterday=$((today - 1))
    # Test: how good is yesterday's model for today, over all and within each user?
    dqrm-cpu prepare "days/day-$today.csv" --schema clicks.toml --bad-rows skip --split none \
        --vocabulary "data/day-$yesterday" --out "data/test-$today"
    dqrm-cpu evaluate --run-dir "runs/day-$yesterday" --data "data/test-$today" --part all --group-by user
    # Then train: the same rows, and rows of tables for what is new.
    dqrm-cpu prepare "days/day-$today.csv" --schema clicks.toml --min-count 3 --bad-rows quarantine \
        --grow-from "data/day-$yesterday" --out "data/day-$today"
    dqrm-cpu train --init-from "runs/day-$yesterday" --data "data/day-$today" --run-dir "runs/day-$today" --resume auto
done

# Scores of rows as they are logged, by the newest model, and the week on one page.
dqrm-cpu predict "runs/day-$days" "days/day-$days.csv" --bad-rows skip --out predictions.parquet --overwrite
dqrm-cpu report runs/day-* --out report.html
