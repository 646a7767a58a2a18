"""The colours of the verdicts as a style sheet, from their table."""

from reludiag.measure.verdicts import VERDICT_TABLE


def verdict_css() -> str:
    """A variable for each verdict, `--always-on`, and a class with it as background,
    `.v-always_on`.
    """
    variables, classes = [], []
    for verdict in VERDICT_TABLE:
        variable = f"--{verdict.name.replace('_', '-')}"
        variables.append(f"  {variable}: light-dark({verdict.light}, {verdict.dark});\n")
        classes.append(f".reludiag .v-{verdict.name} {{ background: var({variable}); }}\n")
    return f".reludiag {{\n{''.join(variables)}}}\n{''.join(classes)}"
