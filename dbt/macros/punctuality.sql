{#
  The measures that every mart has, over rows of stg_flights. Written once, so that "delayed" means the same in each.

  They are exact: counts and sums of whole minutes, one division at the end, medians that are values of the data. So
  the same flights give the same bits, however many threads count them. Sums of integers are cast, because DuckDB makes
  them HUGEINT, a type that Iceberg does not have.
#}
{% macro punctuality() -%}
cast(count(*) as bigint) as flights,
    {% for outcome in ['on_time', 'delayed', 'cancelled', 'diverted'] -%}
    cast(count(*) filter (where outcome = '{{ outcome }}') as bigint) as {{ outcome }},
    {% endfor -%}
    {{ share_of_flights('on_time') }} as on_time_share,
    {{ share_of_flights('delayed') }} as delayed_share,
    {{ share_of_flights('cancelled') }} as cancelled_share,
    {{ mean_minutes('departure_delay_min') }} as mean_departure_delay_min,
    {{ mean_minutes('arrival_delay_min') }} as mean_arrival_delay_min,
    cast(quantile_disc(arrival_delay_min, 0.5) as integer) as median_arrival_delay_min
{%- endmacro %}

{% macro share_of_flights(outcome) -%}
cast(count(*) filter (where outcome = '{{ outcome }}') / count(*) as decimal(5, 4))
{%- endmacro %}

{% macro mean_minutes(column) -%}
cast(cast(sum({{ column }}) as bigint) / count({{ column }}) as decimal(9, 2))
{%- endmacro %}
