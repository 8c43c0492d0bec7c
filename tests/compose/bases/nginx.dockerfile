# Stands in for nginx:1.30-alpine: nginx of a newer Debian release, user and group 101, wget of busybox, stop on SIGQUIT.
FROM standin-debian
RUN groupadd --system --gid 101 nginx && useradd --system --gid nginx --uid 101 --shell /usr/sbin/nologin nginx \
    && sed s/trixie/forky/ /etc/apt/sources.list > /etc/apt/sources.list.d/forky.list \
    && apt-get update --quiet \
    && DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
        --target-release forky nginx busybox \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /etc/nginx/sites-enabled /etc/nginx/modules-enabled \
    && ln -sf /usr/bin/busybox /usr/local/bin/wget
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
