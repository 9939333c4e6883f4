"""The time line of a table by looking at every moment."""

from __future__ import annotations

from xshard.schedules import Schedule, Task, Times


def brute_force(schedule: Schedule, times: Times) -> dict[Task, tuple[int, int]]:
    """At each nanosecond, a free group starts its next task if what it reads is there."""
    left = [list(row) for row in schedule.rows]
    free = [0] * schedule.num_groups
    span: dict[Task, tuple[int, int]] = {}

    def there(needed: Task, task: Task, now: int) -> bool:
        if needed not in span:
            return False
        same = schedule.placement[needed.stage] == schedule.placement[task.stage]
        delay = 0 if same else times.transfer_ns.get((needed.stage, task.stage), 0)
        return span[needed][1] + delay <= now

    now = 0
    while any(left):
        for g, row in enumerate(left):
            if (
                row
                and free[g] <= now
                and all(there(n, row[0], now) for n in schedule.waits_for(row[0]))
            ):
                free[g] = now + times.task_ns[row[0].stage, row[0].part]
                span[row[0]] = now, free[g]
                row.pop(0)
        now += 1
    return span
