"""What is done with runs before and after them, a program each: plans and costs, measuring again, comparing, judge cards."""
