"""Figures for files: a plan, a race of solvers, predicted against measured damage.

Nothing here touches matplotlib's global state: no pyplot, no backend, no styles.
"""

from geocolor.figures.plan import draw_plan
from geocolor.figures.race import draw_race
from geocolor.figures.scatter import draw_scatter

__all__ = ["draw_plan", "draw_race", "draw_scatter"]
