"""Which network of a vault a suspect was made from: what is left of both when all they share goes.

Generations of one basin are nearly equal as they stand, so likeness alone names nobody. `frame`
undoes symmetries, `regression` compares what is left, `null` says what such a likeness is worth,
`judgement` accuses or does not. Which networks a vault has is found in `defence.tracing`.
"""

from g2d.protect.trace.frame import Frame
from g2d.protect.trace.judgement import ACCUSED, Named, Verdict, judge
from g2d.protect.trace.null import Null
from g2d.protect.trace.regression import Likeness, compare

__all__ = ["ACCUSED", "Frame", "Likeness", "Named", "Null", "Verdict", "compare", "judge"]
