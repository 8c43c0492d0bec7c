# Stands in for python:3.13-slim-trixie: python, pip and venv on PATH; pip may install as root.
FROM standin-debian
ENV PATH=/usr/local/bin:$PATH
RUN apt-get update --quiet \
    && DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
        netbase tzdata python3.13 python3.13-venv python-is-python3 \
    && apt-get clean && rm -rf /usr/lib/python3.13/EXTERNALLY-MANAGED /var/lib/apt/lists/* /var/cache/apt/*.bin
# pip from its wheel: Debian's package brings others that pip could not replace.
RUN python "$(echo /usr/share/python-wheels/pip-*.whl)/pip" install --no-cache-dir --no-index \
        --find-links /usr/share/python-wheels pip
CMD ["python3"]
