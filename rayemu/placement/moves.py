"""Few changes to the slots of one node until none of its devices holds more than a target.

Shapes: E experts of the node, G devices, K slots per device.
"""

from __future__ import annotations

import numpy as np

LOOK = 128  # gifts that are looked at closely, the best by the slope of what is over the target


class NodePlan:
    """A plan of one node, [G, K] experts, that is changed slot by slot.

    `held [E, G]` is how many slots of a device hold an expert, `load [G]` what the devices hold. `present`
    is the plan whose slots may stay as they are: a slot that differs from it is a change.
    """

    def __init__(self, weight: np.ndarray, plan: np.ndarray, present: np.ndarray) -> None:
        self.weight, self.plan, self.present = weight, plan.copy(), present
        devices = len(plan)
        self.held = np.zeros((len(weight), devices))
        np.add.at(self.held, (plan, np.arange(devices)[:, None]), 1)
        self.copies = self.held.sum(1)
        self.load = self._loads()

    def _loads(self) -> np.ndarray:
        return (self.weight / self.copies) @ self.held

    def improve(self, target: float) -> bool:
        """Make the step that lessens the squared load over `target` most per change; False if none does.

        A step swaps a slot of the fullest device with one of another device, or gives a slot of an expert
        with several copies to another expert: on the fullest device, or to an expert of the fullest device.
        """
        hot = int(self.load.argmax())
        swap, swap_gain = self._best_swap(hot, target)
        give, give_gain = self._best_gift(hot, target)
        if max(swap_gain, give_gain) <= 1e-12 * target * target:
            return False
        if swap_gain >= give_gain:
            slot, device, other = swap
            mine, theirs = int(self.plan[hot, slot]), int(self.plan[device, other])
            self._put(hot, slot, theirs)
            self._put(device, other, mine)
        else:
            self._put(*give)
        self.load = self._loads()
        return True

    def _put(self, device: int, slot: int, expert: int) -> None:
        old = self.plan[device, slot]
        self.held[old, device] -= 1
        self.held[expert, device] += 1
        self.copies[old] -= 1
        self.copies[expert] += 1
        self.plan[device, slot] = expert

    def _cost(self, device: np.ndarray | int, slot: np.ndarray, expert: np.ndarray) -> np.ndarray:
        """Changes more (or fewer) when slots get other experts."""
        present = self.present[device, slot]
        return (expert != present).astype(float) - (self.plan[device, slot] != present)

    def _best_swap(self, hot: int, target: float) -> tuple[tuple[int, int, int], float]:
        share = self.weight / self.copies
        mine = self.plan[hot]  # [K]
        loads = share[self.plan]  # [G, K]
        moved = loads[hot][:, None, None] - loads  # [K, G, K], what the fullest device loses
        excess = np.maximum(self.load - target, 0) ** 2
        gain = excess[hot] + excess[:, None] - np.maximum(self.load[hot] - moved - target, 0) ** 2
        gain -= np.maximum(self.load[:, None] + moved - target, 0) ** 2
        allowed = (self.held[mine] == 0)[:, :, None] & (self.held[self.plan, hot] == 0)
        slots, devices, others = (np.arange(n) for n in moved.shape)
        cost = self._cost(hot, slots[:, None, None], self.plan[None])
        cost = cost + self._cost(devices[:, None], others, mine[:, None, None])
        best = int(np.where(allowed, _worth(gain, cost), -np.inf).argmax())
        slot, device, other = (int(i) for i in np.unravel_index(best, moved.shape))
        value = _worth(gain, cost)[slot, device, other] if allowed[slot, device, other] else -np.inf
        return (slot, device, other), float(value)

    def _best_gift(self, hot: int, target: float) -> tuple[tuple[int, int, int], float]:
        device, slot = np.nonzero(self.copies[self.plan] > 1)
        lacks = self.held[:, device].T == 0  # [slots, E]
        of_hot = self.held[:, hot] > 0
        row, expert = np.nonzero(lacks & ((device == hot)[:, None] | of_hot))
        if not len(row):
            return (0, 0, 0), -np.inf
        device, slot = device[row], slot[row]
        old = self.plan[device, slot]
        w, c = self.weight, self.copies
        taken = w[old] / (c[old] - 1) - w[old] / c[old]  # what each other copy gets more
        saved = w[expert] / c[expert] - w[expert] / (c[expert] + 1)
        here = w[expert] / (c[expert] + 1) - w[old] / (c[old] - 1)  # on top of these, on the slot's device
        cost = self._cost(device, slot, expert)
        over = np.maximum(self.load - target, 0)
        of_expert = self.held @ over  # what is over on its devices
        slope = saved * of_expert[expert] - taken * of_expert[old] - here * over[device]
        look = np.argsort(-_worth(slope, cost), kind="stable")[:LOOK]
        load = (
            self.load + taken[look, None] * self.held[old[look]] - saved[look, None] * self.held[expert[look]]
        )
        load[np.arange(len(look)), device[look]] += here[look]  # [LOOK, G]
        gain = (over**2).sum() - (np.maximum(load - target, 0) ** 2).sum(1)
        worth = _worth(gain, cost[look])
        best = int(look[worth.argmax()])
        return (int(device[best]), int(slot[best]), int(expert[best])), float(worth.max())


def _worth(gain: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Gain per change; a step without changes, or back to the present plan, counts as a quarter of one."""
    return gain / np.maximum(cost, 0.25)
