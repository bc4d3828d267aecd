"""Resources of a trial, and how they are reserved."""

from typing import NamedTuple

_MOST_CONCURRENT = 96  # the parts of Ray's smallest unit, 1/10,000 of a resource, are counted exactly up to this number


class Host(NamedTuple):
    """Resources of a trial.

    Attributes:
      resources: CPU, GPU and TPU of each host.
      hosts: number of hosts, joined by Ray Train if several.
      topology: topology of a TPU slice, such as "4x4"; `hosts` is then the number of its hosts.
      accelerator: accelerator of the TPU slice, such as "TPU-V6E".
    """

    resources: dict[str, float]
    hosts: int = 1
    topology: str | None = None
    accelerator: str | None = None

    @property
    def joined(self) -> bool:
        """Returns whether Ray Train joins the hosts of a trial."""
        return self.hosts != 1 or self.topology is not None

    @property
    def wanted(self) -> dict[str, float]:
        """Returns each host's resources, without those whose number is 0."""
        return {name: number for name, number in self.resources.items() if number}

    def bundles(self, concurrent: int | None) -> list[dict[str, float]]:
        """Returns the resources that Tune reserves for a trial; for several hosts Ray Train reserves theirs.

        Each trial reserves a part of the head node, of which there is one, so that at most `concurrent` trials run
        whenever the sweep is started. Tune restores its own limit from the first start.

        Raises:
          ValueError: if `concurrent` is not from 1 to 96.
        """
        if concurrent is not None and not 1 <= concurrent <= _MOST_CONCURRENT:
            raise ValueError(
                f"concurrent must be from 1 to {_MOST_CONCURRENT}, got {concurrent}; leave it out for as many trials "
                "as fit."
            )
        part = 0.001 if concurrent is None else 9990 // concurrent / 10_000  # Ray Train needs another 0.001
        head = {"node:__internal_head__": part}
        if self.joined:
            return [head]
        return [self.wanted] if concurrent is None else [self.wanted, head]
