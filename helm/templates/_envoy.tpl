{{- /* Envoy's configuration: bodies untouched, sessions stick, drained pods are left within seconds. */}}
{{- define "steersman.envoy" -}}
{{- $cluster := `
type: STRICT_DNS
connect_timeout: 1s
dns_lookup_family: ALL
common_lb_config: {healthy_panic_threshold: {value: 0}}
circuit_breakers:
  thresholds: [{max_connections: 65536, max_pending_requests: 65536, max_requests: 65536, max_retries: 1024}]
outlier_detection: # ejects what cannot be reached; errors of the application are the clients' own
  enforcing_consecutive_5xx: 0
  enforcing_success_rate: 0
  consecutive_local_origin_failure: 2
  split_external_local_origin_errors: true
  interval: 1s
  base_ejection_time: 5s
  max_ejection_percent: 50
health_checks: # without no_traffic_interval, an idle cluster would hear of a drain after a minute
  - timeout: 2s
    interval: 1s
    no_traffic_interval: 1s
    unhealthy_threshold: 2
    healthy_threshold: 1
    http_health_check: {path: PATH}
` | replace "PATH" .Values.probes.path -}}
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}
static_resources:
  listeners:
    - name: http
      address: {socket_address: {address: 0.0.0.0, port_value: 8080}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: api
                stream_idle_timeout: 0s
                use_remote_address: true
                # The server gives ids itself, and keeps those of clients.
                generate_request_id: false
                preserve_external_request_id: true
                server_header_transformation: PASS_THROUGH
                upgrade_configs: [{upgrade_type: websocket}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                      suppress_envoy_headers: true
                route_config:
                  virtual_hosts:
                    - name: steersman
                      domains: ["*"]
                      routes:
                        - match: {prefix: "/", headers: [{name: {{ .Values.router.sessionHeader }}, present_match: true}]}
                          route:
                            cluster: sticky
                            timeout: 0s
                            hash_policy: [{header: {header_name: {{ .Values.router.sessionHeader }}}}]
                            retry_policy: &retry
                              # Only what no replica has begun: it cannot be reached, or says that it drains.
                              retry_on: connect-failure,refused-stream,retriable-headers
                              retriable_headers: [{name: x-steersman-draining, present_match: true}]
                              num_retries: 2
                              retry_host_predicate:
                                - name: envoy.retry_host_predicates.previous_hosts
                                  typed_config:
                                    "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
                              # Of a session's ring the next ones are often the same host's again.
                              host_selection_retry_max_attempts: 50
                        - match: {prefix: "/"}
                          route: {cluster: spread, timeout: 0s, retry_policy: *retry}
                local_reply_config: # Envoy's own errors, in OpenAI's form
                  mappers:
                    - filter:
                        status_code_filter:
                          comparison: {op: GE, value: {default_value: 500, runtime_key: unused}}
                      headers_to_add: [{header: {key: retry-after, value: "5"}}]
                  body_format:
                    json_format:
                      error:
                        message: "%LOCAL_REPLY_BODY%"
                        type: router_error
                        param: null
                        code: "%RESPONSE_CODE%"
    - name: stats
      address: {socket_address: {address: 0.0.0.0, port_value: 9902}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: stats
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                route_config:
                  virtual_hosts:
                    - name: stats
                      domains: ["*"]
                      routes:
                        - {match: {path: /ready}, route: {cluster: admin}}
                        - {match: {path: /stats/prometheus}, route: {cluster: admin}}
  clusters:
    {{- range $name, $policy := dict "sticky" "RING_HASH" "spread" "LEAST_REQUEST" }}
    - name: {{ $name }}
      lb_policy: {{ $policy }}
      {{- $cluster | nindent 6 }}
      load_assignment:
        cluster_name: {{ $name }}
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address:
                      address: {{ include "steersman.fullname" $ }}-engine.{{ $.Release.Namespace }}.svc
                      port_value: {{ $.Values.server.port }}
    {{- end }}
    - name: admin
      type: STATIC
      load_assignment:
        cluster_name: admin
        endpoints:
          - lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}}]
{{- end }}
