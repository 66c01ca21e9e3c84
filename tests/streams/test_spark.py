"""Data frames of Spark: the numbers of memory, from executors of this machine."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pytest

import fastlmm_core as flc
from streamed import FORMULA, close, simulated

sql = pytest.importorskip("pyspark.sql")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark runs on Java"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    builder = sql.SparkSession.builder.master("local[2]").appName("fastlmm_core")
    for key, value in {
        "spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "512m", "spark.sql.execution.arrow.maxRecordsPerBatch": "700",
        "spark.task.maxFailures": "3",
    }.items():  # fmt: skip
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.mark.parametrize(
    "formula",
    [FORMULA, "y ~ arm * z + (1 | g)", "y ~ center(x) + within(z, g) + (1 | g)", "y ~ x + (1 | g) + (1 | arm)"],
)
def test_a_frame_is_fitted_as_in_memory(spark, formula):
    data = simulated(4000, shuffled=True)
    frame = spark.createDataFrame(data).repartition(5)
    result = flc.lmm(formula, frame).fit()
    assert result.nobs == 4000
    close(result, flc.lmm(formula, data).fit(), 1e-11)


def test_gaps_and_partitions_without_rows(spark):
    data = simulated(300)
    data.loc[:20, "y"] = np.nan
    frame = spark.createDataFrame(data).coalesce(1).repartition(60, "arm")
    result = flc.lmm(FORMULA, frame).fit()
    assert result.nobs == 279 and result.model.n_dropped == 21
    close(result, flc.lmm(FORMULA, data).fit(), 1e-11)
