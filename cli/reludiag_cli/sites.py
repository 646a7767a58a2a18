"""`reludiag sites`: the rectifier calls of a model."""

from reludiag_cli import options


def sites(
    model: options.Model,
    data: options.Data = None,
    data_arg: options.DataArg = None,
    input_shape: options.InputShape = None,
    batch_size: options.BatchSize = 2,
    unit_axis: options.UnitAxis = None,
    watch: options.Watch = None,
    merge_calls: options.MergeCalls = True,
    model_arg: options.ModelArg = None,
    device: options.Device = None,
    dtype: options.DType = None,
    as_json: options.AsJson = False,
) -> None:
    """List the rectifier calls of a model, with their unit counts."""
    from rich.console import Console

    from reludiag.measure.site_list import list_sites
    from reludiag.reports.site_list import print_sites, sites_document

    axes, watched = options.unit_axes(unit_axis), options.watched(watch)
    network = options.build_model(model, model_arg, device, dtype)
    batches, _ = options.build_batches(data, data_arg, input_shape, batch_size)
    site_list = list_sites(
        network,
        None if batches is None else batches(),
        options.input_dtype(dtype),
        axes,
        merge_calls,
        watched,
    )
    if as_json:
        print(sites_document(site_list), end="")
    else:
        print_sites(site_list, Console())
