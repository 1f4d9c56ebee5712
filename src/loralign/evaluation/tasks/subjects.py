"""A task whose solved examples are of the subject of the question, as the few-shot protocol of MMLU has it."""

from __future__ import annotations

from typing import Any

from lm_eval.api.task import ConfigurableTask


class SubjectTask(ConfigurableTask):
    """The harness's task, whose sampler sees the examples of one ``subject`` at a time.

    Args:
        config: of the task; ``class``, by which the harness came here, is no field of it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self._solved: list[dict[str, Any]] = list(self.fewshot_docs())

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The harness's context, with examples of the document's subject only."""
        self.sampler.replace_df([one for one in self._solved if one["subject"] == doc["subject"]])
        return super().fewshot_context(doc, *args, **kwargs)
